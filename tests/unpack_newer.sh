#!/usr/bin/env bash
# Unpack newer Pythons and servers into a folder, for `make test-newer`.
#
#     tests/unpack_newer.sh FOLDER [SUITE [MIRROR]]
#
# The packages come from a newer Debian suite. debootstrap chooses and downloads them, and patchelf
# makes the programs use their own libraries. Nothing is installed on this machine.
set -euo pipefail
folder=$(realpath -m "$1") suite=${2:-sid} mirror=${3:-}
packages=python3.14-venv,python3.15-venv
packages+=,postgresql-18,mysql-server-core,mysql-client-core,mariadb-server-core,mariadb-client-core
packages+=,redis-server,valkey-server

debootstrap --download-only --variant=minbase --include="$packages" "$suite" "$folder" $mirror
# /bin, /sbin and /lib are links into /usr, which tar keeps only if they exist already.
for name in bin sbin lib lib64; do
    mkdir -p "$folder/usr/$name"
    [ -L "$folder/$name" ] || ln -sfn "usr/$name" "$folder/$name"
done
for package in "$folder"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --keep-directory-symlink --no-same-owner
done

# The programs need the suite's own loader and libraries.
libraries=$folder/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
find "$folder/usr/bin" "$folder/usr/sbin" "$folder"/usr/lib/postgresql/*/bin -type f -perm -100 |
    while read -r program; do
        loader=$(patchelf --print-interpreter "$program" 2>/dev/null) || continue
        patchelf --force-rpath --set-rpath "$libraries" --set-interpreter "$folder$loader" "$program"
    done
