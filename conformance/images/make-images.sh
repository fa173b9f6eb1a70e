#!/bin/bash
# Builds the test images out of Debian packages (busybox, nginx and their libraries) and two tiny C programs, straight
# into the storage tree of a docker-registry: OUT/registry, with OUT/images.json listing references and digests. The
# repository paths are those that CRI validation suites ask the usual public registries for, so that one plain mirror
# serves them all. The same packages give the same digests.
#
# usage: make-images.sh [--force] [OUT]     OUT: target/conformance/images of this checkout
# Packages are only downloaded and unpacked. Needs apt, gcc, binutils, python3.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
out=${1:-$target/conformance/images}
mkdir -p "$out"
out=$(cd "$out" && pwd)
debs=$out/debs
arch=$(dpkg --print-architecture)
multiarch=$(gcc -print-multiarch)

# Nothing to do if these very scripts made what is there. One maker at a time.
exec 9>"$out/lock"
flock 9
stamp=$(cat "$here/make-images.sh" "$here/mkregistry.py" | sha256sum)
if [ -z "$force" ] && [ -d "$out/registry" ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -f "$out/stamp"
work=$out/work
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/pkg" "$debs"

# 1. Debian packages -> $work/pkg. An alternative after a bar is another release's name of the same package.
for names in busybox libc6 libcrypt1 nginx nginx-common libpcre2-8-0 'libssl3t64|libssl3' zlib1g libzstd1; do
  name=
  for n in ${names//|/ }; do
    if apt-cache show "$n" >/dev/null 2>&1; then name=$n; break; fi
  done
  [ -n "$name" ] || { echo "make-images: apt knows no package $names; run apt-get update" >&2; exit 1; }
  if ! ls "$debs/${name}_"*.deb >/dev/null 2>&1; then
    (cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download "$name")
  fi
  dpkg-deb -x "$(find "$debs" -name "${name}_*.deb" | sort -V | tail -1)" "$work/pkg"
done
find_lib() { find "$work/pkg" -path '*/lib*' -name "$1" -print -quit; }

# Copies the libraries that ELF file $2 needs, and what they need, into root file system $1.
copy_needed() {
  local name path
  for name in $(readelf -d "$2" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    if [ -e "$1/lib/$multiarch/$name" ]; then continue; fi
    path=$(find_lib "$name")
    if [ -z "$path" ]; then echo "make-images: no package holds $name" >&2; exit 1; fi
    install -D -m 755 "$(readlink -f "$path")" "$1/lib/$multiarch/$name"
    copy_needed "$1" "$path"
  done
}

# 2. The base: busybox. (Not busybox-static: its shell runs applets without exec, so that masking /bin/ls shows nothing.)
base=$work/rootfs/busybox
mkdir -p "$base"/{bin,dev,etc,home,root,tmp,run,usr/bin,usr/sbin,var/www,var/spool/mail,var/lib,var/log}
busybox=$(find "$work/pkg" -path '*/bin/busybox' -print -quit)
install -m 755 "$busybox" "$base/bin/busybox"
copy_needed "$base" "$busybox"
interpreter=$(readelf -l "$busybox" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
install -D -m 755 "$(readlink -f "$(find_lib "$(basename "$interpreter")")")" "$base$interpreter"
ln -sf ../run "$base/var/run"
chmod 1777 "$base/tmp"
chmod 700 "$base/root"
for applet in $("$busybox" --list); do
  if [ "$applet" != busybox ]; then ln -f "$base/bin/busybox" "$base/bin/$applet"; fi
done
# Two applets that Debian's busybox lacks.
cat > "$base/bin/pgrep" <<'X'
#!/bin/sh
# pgrep NAME
rc=1
for d in /proc/[0-9]*; do
  read -r c < $d/comm || continue
  case "$c" in *"$1"*) [ "${d#/proc/}" = $$ ] || { echo "${d#/proc/}"; rc=0; } ;; esac
done 2>/dev/null
exit $rc
X
cat > "$base/bin/ipcs" <<'X'
#!/bin/sh
# ipcs -m
exec cat /proc/sysvipc/shm
X
chmod 755 "$base/bin/pgrep" "$base/bin/ipcs"
cat > "$base/etc/passwd" <<'X'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
X
cat > "$base/etc/group" <<'X'
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
wheel:x:10:root
mail:x:8:
www-data:x:33:
utmp:x:43:
staff:x:50:
users:x:100:
nobody:x:65534:
X
printf 'root:*:10933:0:99999:7:::\n' > "$base/etc/shadow"
chmod 600 "$base/etc/shadow"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' > "$base/etc/nsswitch.conf"

# 3. nginx, on top of the base.
nginx=$work/rootfs/nginx
mkdir -p "$nginx"/{etc/nginx/conf.d,usr/sbin,usr/share/nginx/html,var/log/nginx,var/lib/nginx,"lib/$multiarch"}
install -m 755 "$work/pkg/usr/sbin/nginx" "$nginx/usr/sbin/nginx"
copy_needed "$nginx" "$work/pkg/usr/sbin/nginx"
for lib in "$base/lib/$multiarch"/*; do rm -f "$nginx/lib/$multiarch/$(basename "$lib")"; done
cp "$work/pkg/etc/nginx/mime.types" "$nginx/etc/nginx/"
ln -sf /dev/stdout "$nginx/var/log/nginx/access.log"
ln -sf /dev/stderr "$nginx/var/log/nginx/error.log"
cat > "$nginx/etc/nginx/nginx.conf" <<'X'
user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log warn;
pid /var/run/nginx.pid;
events { worker_connections 256; }
http {
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log /var/log/nginx/access.log;
  include /etc/nginx/conf.d/*.conf;
}
X
server='server { listen %s; server_name localhost; location / { root /usr/share/nginx/html; index index.html; } }\n'
# shellcheck disable=SC2059
printf "$server" 80 > "$nginx/etc/nginx/conf.d/default.conf"
printf '<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>\n' > "$nginx/usr/share/nginx/html/index.html"
mkdir -p "$work/rootfs/hostnet/etc/nginx/conf.d"
# shellcheck disable=SC2059
printf "$server" 12003 > "$work/rootfs/hostnet/etc/nginx/conf.d/default.conf"

# 4. A web server that says "httpd" on stderr, as Apache's does.
httpd=$work/rootfs/httpd
mkdir -p "$httpd/usr/local/bin" "$httpd/usr/local/apache2/htdocs"
printf '<html><body><h1>It works!</h1></body></html>\n' > "$httpd/usr/local/apache2/htdocs/index.html"
cat > "$httpd/usr/local/bin/httpd-foreground" <<'X'
#!/bin/sh
echo "AH00558: httpd: stand-in, serving /usr/local/apache2/htdocs" >&2
exec httpd -f -v -p 80 -h /usr/local/apache2/htdocs
X
chmod 755 "$httpd/usr/local/bin/httpd-foreground"

# 5. pause, and a setuid program that tells its effective uid.
cat > "$work/pause.c" <<'X'
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { (void)s; _exit(0); }
static void reap(int s) { (void)s; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
  struct sigaction a = {0};
  a.sa_handler = down;
  sigaction(SIGINT, &a, 0);
  sigaction(SIGTERM, &a, 0);
  a.sa_handler = reap;
  a.sa_flags = SA_NOCLDSTOP;
  sigaction(SIGCHLD, &a, 0);
  for (;;) pause();
}
X
cat > "$work/nnp.c" <<'X'
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", (int)geteuid()); return 0; }
X
mkdir -p "$work/rootfs/pause" "$work/rootfs/nnp"
gcc -Os -static -s -Wl,--build-id=none -o "$work/rootfs/pause/pause" "$work/pause.c"
gcc -Os -static -s -Wl,--build-id=none -o "$work/rootfs/nnp/nnp" "$work/nnp.c"
chmod 4755 "$work/rootfs/nnp/nnp"

# 6. Groups that the image defines, over passwd and group of the base.
predef=$work/rootfs/predef
mkdir -p "$predef/etc" "$predef/home/default-user"
{ cat "$base/etc/passwd"; echo 'default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh'; } > "$predef/etc/passwd"
{ cat "$base/etc/group"; echo 'default-user:x:1000:'; echo 'group-defined-in-image:x:50000:default-user'; } > "$predef/etc/group"

# 7. Layers that hold one empty file, to make images differ.
for m in test-image-1 test-image-2 test-image-3 test-image-latest test-image-digest same-image test all wrong-platform; do
  mkdir -p "$work/rootfs/m-$m"
  : > "$work/rootfs/m-$m/$m"
done

python3 "$here/mkregistry.py" "$work/rootfs" "$out/registry" "$out/images.json" "$arch"
echo "$stamp" > "$out/stamp"
