# dpkg unpacks, configures and removes a package below a root of its own.
mkdir -p package/DEBIAN package/opt/thing root/var/lib/dpkg/info root/var/lib/dpkg/updates root/var/lib/dpkg/triggers
seq 2000 > package/opt/thing/data; ln -s data package/opt/thing/link; touch root/var/lib/dpkg/status
printf 'Package: thing\nVersion: 2\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: a thing\n' > package/DEBIAN/control
dpkg-deb --root-owner-group -Znone -b package thing.deb > /dev/null
options="--root=$PWD/root --force-not-root --force-script-chrootless --force-depends --log=$PWD/log"
dpkg $options -i thing.deb > /dev/null 2>&1; echo "installed: $?"
dpkg $options -r thing > /dev/null 2>&1; echo "removed: $?"; find root/opt 2> /dev/null | wc -l
