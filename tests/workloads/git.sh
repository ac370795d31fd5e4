# A repository's life: commits, branches, a merge with a conflict, stash, rebase, packing, clone, worktree.
set -e
git init -q -b trunk work; cd work
git config user.name Tester; git config user.email tester@example.org
for i in 1 2 3 4 5 6; do seq "$i" 400 > "file$i"; git add "file$i"; git commit -qm "file $i"; done
git checkout -qb side; sed -i s/40/forty/ file1; git mv file2 moved; git commit -qam side
git checkout -q trunk; sed -i s/40/vierzig/ file1; git commit -qam trunk
git merge -q side > /dev/null || { git checkout -q --ours file1; git add file1; git commit -qm merged; }
echo dirty >> file3; git stash -q; git stash pop -q; git checkout -q file3
git tag -a -m 'a tag' v1; git branch -q old HEAD~2; git checkout -q old; echo more > more; git add more; git commit -qm more
git rebase -q trunk > /dev/null; git checkout -q trunk; git cherry-pick old > /dev/null
git worktree add -q ../tree2 side; git worktree remove ../tree2
git gc -q --prune=now; git fsck --strict > /dev/null
cd ..; git clone -q work clone; git -C clone reset -q --hard HEAD~3; git clone -q --bare work bare.git
cd clone; git pull -q; git log --oneline | wc -l; git status --short
