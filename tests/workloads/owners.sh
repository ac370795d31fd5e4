# What only root may: owners and devices.
set -e
echo mine > a; mkdir d; echo yours > d/b; ln -s a l
chown 12:34 a; chown -R 56:78 d; chown -h 9:10 l; chgrp 11 a
chmod 4755 a; chown 13 a; mknod null c 1 3; mknod disk b 7 200
stat -c '%n %u %g %a %t %T' a d d/b l null disk
