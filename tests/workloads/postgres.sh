# A database cluster from nothing, some work in it, and a clean end. Not as root.
set -e
initdb -A trust -U tester -D cluster > /dev/null
pg_ctl -D cluster -l log -w -s -o "-c listen_addresses= -c unix_socket_directories=$TMPDIR -c fsync=on" start
trap 'pg_ctl -D cluster -m immediate -s stop' ERR
sql() { psql -h "$TMPDIR" -U tester -qAt postgres -c "$1"; }
sql 'create table t(a serial primary key, b text)'
sql "insert into t(b) select 'row ' || i from generate_series(1, 5000) i"
sql 'create index on t(b)'; sql 'delete from t where a % 3 = 0'; sql 'vacuum full t'; sql 'checkpoint'; sql 'select count(*) from t'
pg_ctl -D cluster -m fast -w -s stop
