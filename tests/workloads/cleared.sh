# Children whose environment was emptied or lost our variables on the way.
set -e
env -i /bin/sh -c 'echo empty > empty'; env -i /usr/bin/touch touched; env -u LD_PRELOAD /bin/cp /etc/passwd copied
env -i PATH=/usr/bin:/bin sh -c 'mkdir made; env -i /bin/mv copied made/; echo x >> empty'
python3 -c 'import subprocess; subprocess.run(["/bin/cp", "/etc/hostname", "by-python"], env={})'
perl -e 'delete local $ENV{LD_PRELOAD}; %ENV = (); system("/bin/sh", "-c", "echo > by-perl")'
