# One database in each journal mode, an attached one, and vacuum.
set -e
for mode in delete truncate persist wal memory off; do
    sqlite3 "$mode.db" "pragma journal_mode = $mode; create table t(a integer primary key, b text, c blob);
        insert into t(b, c) values('one', randomblob(10)), ('two', zeroblob(5000));
        begin; with recursive n(i) as (select 1 union all select i + 1 from n where i < 300)
        insert into t(b) select 'row ' || i from n; commit;
        update t set b = b || '!' where a % 7 = 0; delete from t where a between 50 and 90;
        begin; delete from t; rollback; create index i on t(b); pragma integrity_check;"
done
sqlite3 wal.db "pragma wal_checkpoint(truncate); insert into t(b) values('after');"
sqlite3 delete.db "attach 'truncate.db' as other; begin; insert into other.t(b) select b from main.t; update t set b = 'x'; commit; vacuum;"
sqlite3 mapped.db 'pragma mmap_size = 100000000; create table t(a); insert into t values(zeroblob(200000)); update t set a = 1; select count(*) from t;'
sqlite3 delete.db .dump > dump.sql; sqlite3 again.db < dump.sql; sqlite3 again.db 'select count(*) from t'
