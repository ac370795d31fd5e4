# Editors in place and patches.
set -e
seq -f 'line %g' 300 > text; cp text ed; cp text sed; cp text vi
printf '10,20d\n1i\nnew first\n.\nw\n5r text\nw other\nq\n' | ed -s ed > /dev/null
sed -i -e 's/line/row/' -e '/7/d' sed; sed -i.orig 1~3d sed; sed -n 'w written' sed
vim.tiny -u NONE -es -c 'g/5/d' -c 'normal Gonew last' -c 'wq' vi
vim.tiny -u NONE -es -c 'set backup writebackup' -c '%s/line/zeile/' -c 'w' -c 'w! vi.copy' -c 'q!' vi
diff -u text sed > change || true
cp text patched; patch -s patched change; cmp patched sed; patch -s -R -b patched change; cmp patched text
perl -pi -e 's/line/ligne/' patched; perl -i.bak -ne 'print if $. % 2' patched
awk '{ print > ("awk" NR % 3) } END { printf "done" >> "awk0" }' text
