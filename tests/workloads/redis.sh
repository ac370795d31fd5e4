# redis: an append-only file, its rewrite, and a snapshot.
redis-server --port 0 --unixsocket "$TMPDIR/redis" --appendonly yes --appendfsync everysec --dir . --save '' --logfile redis.log --daemonize no > /dev/null &
ask() { redis-cli -s "$TMPDIR/redis" "$@"; }
for i in $(seq 100); do [ "$(ask ping 2> /dev/null)" = PONG ] && break; sleep 0.1; done
for i in $(seq 30); do ask set "key$i" "value $i" > /dev/null; done; ask rpush list a b c > /dev/null; ask del key7 > /dev/null
ask bgrewriteaof > /dev/null; while [ "$(ask info persistence | tr -d '\r' | sed -n 's/^aof_rewrite_in_progress://p')" = 1 ]; do sleep 0.1; done
ask save; ask dbsize; ask shutdown nosave; wait
