# Python's ways to write: buffered, by descriptor, mapped, copied inside the kernel.
python3 - <<'P'
import dbm.dumb, gzip, json, mmap, os, pathlib, pickle, shutil, subprocess, tempfile, threading, zipfile
with open('text', 'w') as f: f.writelines(f'{i * i}\n' for i in range(4000))
with open('text', 'r+b') as f: f.seek(10); f.write(b'patched'); f.flush(); os.fsync(f.fileno()); f.truncate(7000)
fd = os.open('raw', os.O_RDWR | os.O_CREAT, 0o640)
os.write(fd, b'head'); os.pwrite(fd, b'tail', 30000); os.pwritev(fd, [b'v1', b'v2' * 50], 77); os.writev(fd, [b'a', b'', b'b' * 5000])
os.ftruncate(fd, 65536); os.posix_fallocate(fd, 65536, 4096)
m = mmap.mmap(fd, 65536); m[4096:4106] = b'in the map'; m.flush(4096, 4096); m[60000] = 65; m.close(); os.close(fd)
def thread(n):
    with open(f'thread{n}', 'w') as f:
        for i in range(200): f.write(f'{n} {i}\n'); f.flush()
threads = [threading.Thread(target=thread, args=(n,)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
p = pathlib.Path('folder/in/folder'); p.mkdir(parents=True); (p / 'note').write_text('x' * 99); (p / 'note').rename('folder/moved')
shutil.copytree('folder', 'copied'); shutil.move('copied', 'again'); shutil.rmtree('again'); shutil.copy2('text', 'text2')
os.link('text', 'hard'); os.symlink('text', 'soft'); os.replace('text2', 'text3'); os.chmod('raw', 0o604); os.utime('raw', ns=(1, 987654321)); os.mkfifo('fifo')
s, d = os.open('text', os.O_RDONLY), os.open('ranges', os.O_RDWR | os.O_CREAT)
os.copy_file_range(s, d, 1500); os.sendfile(d, s, 2000, 700); os.copy_file_range(s, d, 300, 0, 5000)
r, w = os.pipe(); os.write(w, b'spliced' * 9); os.splice(r, d, 63, offset_dst=9000); os.close(s); os.close(d)
with tempfile.TemporaryFile(dir='.') as f: f.write(b'never seen')
with tempfile.NamedTemporaryFile(dir='.', delete=False) as f: f.write(b'kept'); name = f.name
os.rename(name, 'named'); json.dump({'a': list(range(500))}, open('json', 'w')); pickle.dump(list(range(500)), open('pickle', 'wb'))
with zipfile.ZipFile('zip', 'w') as z: z.writestr(zipfile.ZipInfo('member'), 'm' * 500)
with dbm.dumb.open('dbm', 'c') as db: db['key'] = 'value'
subprocess.run(['cp', 'text', 'by-child'], check=True); subprocess.run('echo shell > by-shell', shell=True, check=True)
if os.fork() == 0: open('by-fork', 'w').write('forked'); os._exit(0)
os.wait(); print(sorted(os.listdir('.')))
P
