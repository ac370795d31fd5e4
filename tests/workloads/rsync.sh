# rsync into the primary, in its several ways of writing.
set -e
mkdir from; seq 5000 > from/numbers; cp -a /etc/ld.so.conf.d from/; ln -s numbers from/link; ln from/numbers from/hard
rsync -a from/ one; rsync -aHX --inplace from/ two; sed -i s/5/five/ from/numbers; rsync -a --no-whole-file from/ one
rsync -a --inplace --no-whole-file from/ two; rsync -a --link-dest="$PWD/one" from/ three; rm from/link; rsync -a --delete --backup --suffix=.old from/ one
rsync -a --remove-source-files from/ four; rsync -a --sparse --delay-updates four/ five; find . | wc -l
