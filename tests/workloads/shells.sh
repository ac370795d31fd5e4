# Redirections of two shells, here-documents, subshells and appends from several processes.
set -e
echo first > log
for word in alpha beta gamma; do echo "$word" >> log; done
printf '%s\n' one two three | while read -r line; do printf '<%s>' "$line" >> joined; done
{ echo grouped; echo output; } > group
(cd /; echo "from a subshell") > subshell
: > emptied; echo x > emptied; : > emptied
exec 7> seven; echo "through descriptor 7" >&7; exec 7>&-
cat > document <<X
here, $((6 * 7))
X
dash -c 'echo dash > dashed; echo again >> dashed; cat dashed dashed > doubled; umask 077; : > private'
for i in 1 2 3 4; do (for j in 1 2 3 4 5; do echo "$i" >> shared; done) & done; wait
sort -n shared | uniq -c
set -C; (echo refused > log) 2> /dev/null || echo "noclobber kept log"
