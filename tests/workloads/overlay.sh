# Changes files that were there before: on an overlay these move from the lower layer to the upper one. BELOW names them.
set -e
[ -d "$BELOW" ] || { mkdir -p "$BELOW"; for name in written renamed truncated moded; do seq 5000 > "$BELOW/$name"; done; }
echo more >> "$BELOW/written"; printf over | dd of="$BELOW/written" bs=1 seek=10 conv=notrunc status=none
mv "$BELOW/renamed" "$BELOW/moved"; truncate -s 77 "$BELOW/truncated"; chmod 700 "$BELOW/moded"; ln "$BELOW/moved" linked
mv "$BELOW/moved" .; echo end >> linked; rm "$BELOW/truncated"; mkdir "$BELOW/new"; rmdir "$BELOW/new"; stat -c '%n %s' moved linked
