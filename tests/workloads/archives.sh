# Archives and compressors.
set -e
mkdir in; seq 3000 > in/numbers; cp /etc/passwd in/users; ln in/users in/users2; ln -s users in/link; mkdir in/empty
touch -d '2010-10-10 10:10:10 UTC' in/numbers in/users in/empty in
tar cf a.tar in; mkdir out1; tar xf a.tar -C out1
tar --sort=name -czf a.tgz in; mkdir out2; tar xzpf a.tgz -C out2; tar rf a.tar /etc/hostname 2> /dev/null; tar --delete -f a.tar in/numbers
tar --acls --xattrs -cf b.tar in; mkdir out3; tar --acls --xattrs -xf b.tar -C out3 --transform 's,^in,renamed,'
zip -qr a.zip in; mkdir out4; unzip -q a.zip -d out4; zip -q -d a.zip in/users
gzip -nk in/numbers; bzip2 -k in/numbers; xz -k in/numbers
gunzip -c in/numbers.gz > plain; bunzip2 -k -f in/numbers.bz2; unxz -k -f in/numbers.xz; gzip -d -f in/numbers.gz
find . -type f | LC_ALL=C sort | wc -l
