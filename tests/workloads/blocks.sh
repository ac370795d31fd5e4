# fio's engines: plain, vectored, mapped, POSIX and Linux asynchronous.
set -e
for engine in sync psync pvsync mmap posixaio libaio; do
    fio --name=job --filename="by-$engine" --size=256k --bs=4k --rw=randwrite --ioengine="$engine" --iodepth=8 --randseed=7 --fsync=16 --output=/dev/null
done
fio --name=job --filename=direct --size=64k --bs=4k --rw=randrw --ioengine=libaio --iodepth=4 --direct=0 --output=/dev/null
