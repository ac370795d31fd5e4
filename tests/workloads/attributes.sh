# Extended attributes, ACLs and inode flags. Needs the attr, acl and e2fsprogs packages.
echo text > file; mkdir folder
setfattr -n user.colour -v blue file; setfattr -n user.shape -v round folder; setfattr -n user.colour -v red file
setfattr -n user.gone -v soon file; setfattr -x user.gone file; getfattr -d file folder
setfacl -m u:1234:rw,g:4321:r file && setfacl -d -m u:1234:rwx folder && getfacl -n -c file folder
touch folder/inherits; setfacl -x u:1234 file; setfacl -b folder; getfacl -n -c file
chattr +d file; lsattr -d file | cut -c1-22; chattr -d file
cp --preserve=all file again; mv again folder/
