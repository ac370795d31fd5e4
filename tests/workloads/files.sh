# The file tools of coreutils, one after the other.
set -e
seq 1000 > numbers
cp numbers copy; cp -p numbers kept; cp --sparse=always /bin/true sparse; cp -a /etc/ld.so.conf.d confs
ln numbers second; ln -s numbers soft; ln -s /nowhere/at/all dangling; cp -a soft softer
mkdir -p tree/of/directories -m 750; mv copy tree/of/; mv tree forest
touch -d '2001-02-03 04:05:06.789012345 UTC' dated; touch -h -d '1999-12-31 23:59:59 UTC' soft; touch -r dated forest
chmod u=rwx,g=s,o= kept; chmod -R g+w forest; chmod 1777 forest/of
truncate -s 1M big; truncate -s 10 big; fallocate -l 64K spread; fallocate -p -o 4096 -l 8192 spread
# tmpfs cannot zero a range.
fallocate -z -o 0 -l 100 spread 2> /dev/null || dd if=/dev/zero of=spread bs=100 count=1 conv=notrunc status=none
dd if=numbers of=parts bs=100 count=7 seek=3 conv=notrunc,fdatasync status=none
dd if=/dev/zero of=parts bs=1 count=5 seek=2 conv=notrunc oflag=append status=none
head -c 3000 numbers | tee t1 t2 > t3; tac numbers > backwards; split -n 4 numbers piece; csplit -s -f cut numbers 300 600
install -D -m 640 numbers deep/er/installed; mkfifo pipe; mktemp -d here.XXXXXX > /dev/null; mktemp there.XXXXXX > /dev/null
shuf --random-source=/bin/true numbers -o shuffled; sort -u numbers numbers -o sorted; comm -12 sorted sorted > common
rm piece*; rmdir here.*; rm there.*; rm -r confs; unlink second
shred -n 1 --random-source=/bin/true -u t2
sync numbers; stat -c '%n %s %a %h' numbers kept forest
