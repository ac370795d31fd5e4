# A sort that spills into many temporary files.
set -e
seq 150000 | shuf --random-source=<(yes) > mixed
sort -S 300k -T . --parallel=2 -n mixed -o ordered; sort -S 300k -T . -r mixed -o mixed; uniq -w 3 ordered > few; join ordered ordered 2> /dev/null | wc -l > joined || true
cmp ordered <(seq 150000) && echo ordered; paste ordered mixed | tail -n 3 > pasted
