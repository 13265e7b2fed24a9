#!/bin/bash
# Boot systemd as process 1 of namespaces of its own, on a copy of this machine that is thrown away.
#
# boot.sh FOLDER SITE_PACKAGES: run by `unshare --mount --pid --fork --uts --ipc --cgroup`, as root.
# The copy is an overlay in memory. Of Debian's units only the journal is started: nothing of this
# machine is mounted, configured, or loaded into the kernel a second time.
set -euo pipefail
folder=$1 packages=$2 here=$(cd "$(dirname "$0")/../.." && pwd)

mount --make-rprivate /
mount -t tmpfs -o mode=755,size=1g tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm,mqueue}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
# Without these PrivateDevices= fails.
ln -s pts/ptmx "$root/dev/ptmx"

# --- the units -------------------------------------------------------------------------------
rm -rf "$root"/{etc,lib}/systemd/system/*.target.wants "$root"/etc/systemd/system/*itdesk* \
    "$root"/etc/init.d/* "$root"/etc/rc?.d "$root"/var/log/journal
units=$root/etc/systemd/system
printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n' \
    >"$units/sysinit.target"
for target in basic network-online multi-user; do
    printf '[Unit]\nDefaultDependencies=no\nRequires=sysinit.target\nAfter=sysinit.target\n' \
        >"$units/$target.target"
done

# --- itdesk, as an installation leaves it ------------------------------------------------------
mkdir -p "$root"/opt/itdesk/{bin,lib,deps,src}
mount --bind -o ro "$packages" "$root/opt/itdesk/deps"
mount --bind -o ro "$here" "$root/opt/itdesk/src"
cp -r "$here/itdesk" "$root/opt/itdesk/lib/itdesk"
for part in plugins migrations etc; do cp -r "$here/$part" "$root/opt/itdesk/lib/itdesk_$part"; done
cat >"$root/opt/itdesk/bin/itdesk" <<'PY'
#!/usr/bin/python3
import sys
sys.path[:0] = ["/opt/itdesk/lib", "/opt/itdesk/deps"]
from itdesk.cli import main
main()
PY
chmod 755 "$root/opt/itdesk/bin/itdesk"
ln -s /opt/itdesk/bin/itdesk "$root/usr/local/bin/itdesk"

# A chroot alone would not do: what is in one may make no user namespace (PrivateUsers=).
cd "$root"
mount --move . /
exec chroot . /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    container=itdesk-tests /lib/systemd/systemd --system --unit=multi-user.target
