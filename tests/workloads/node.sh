# Node: synchronous calls, its thread pool, streams and promises.
node -e '
const fs = require("fs"), path = require("path");
fs.writeFileSync("sync", "s".repeat(70000)); fs.appendFileSync("sync", "more"); const fd = fs.openSync("sync", "r+");
fs.writeSync(fd, "inside", 500); fs.writevSync(fd, [Buffer.from("v"), Buffer.alloc(3000, 120)], 9000); fs.ftruncateSync(fd, 40000); fs.fsyncSync(fd); fs.futimesSync(fd, 3, 4); fs.closeSync(fd);
fs.mkdirSync("a/b/c", { recursive: true }); fs.cpSync("a", "z", { recursive: true }); fs.rmSync("a", { recursive: true });
fs.linkSync("sync", "hard"); fs.symlinkSync("sync", "soft"); fs.copyFileSync("sync", "copy"); fs.renameSync("copy", "z/copied"); fs.chmodSync("sync", 0o640); fs.truncateSync("z/copied", 123);
(async () => {
  await Promise.all([...Array(20).keys()].map(i => fs.promises.writeFile("p" + i, String(i).repeat(999))));
  const h = await fs.promises.open("handle", "a"); for (let i = 0; i < 30; i++) await h.appendFile(i + ","); await h.close();
  await new Promise(done => { const s = fs.createWriteStream("stream"); for (let i = 0; i < 500; i++) s.write("chunk " + i + "\n"); s.end(done); });
  await new Promise(done => fs.createReadStream("stream").pipe(fs.createWriteStream("piped")).on("finish", done));
  await fs.promises.rename("p0", path.join("z", "p0")); await fs.promises.unlink("p1"); console.log(fs.readdirSync(".").length);
})();'
