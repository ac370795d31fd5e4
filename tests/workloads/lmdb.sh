# LMDB: a lock file in a shared mapping, data by pwrite.
set -e
{ printf 'VERSION=3\nformat=print\ntype=btree\nmapsize=4194304\nmaxreaders=126\ndb_pagesize=4096\nHEADER=END\n'
  for i in $(seq 2000); do printf ' key%06d\n value %d\n' "$i" "$i"; done; echo DATA=END; } > dump
mdb_load -n -f dump store; mdb_copy -n -c store compact; mdb_dump -n store | wc -l; mdb_stat -n store | grep Entries
