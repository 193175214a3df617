#!/usr/bin/env bash
# Makes the base images that this project's Dockerfiles name, from what is
# installed on this machine, for machines that reach no registry. Everywhere else
# the same Dockerfiles pull the real ones, and this script is not needed.
#
#   deploy/images/make-base.sh                  all of them
#   deploy/images/make-base.sh node:20-bookworm-slim ...
#
# An image that is up to date is left alone. Each carries the label
# wormhole.base, a digest of what it was made from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

label=wormhole.base
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What a slim Debian image offers to a Dockerfile's RUN lines and to scripts.
basics=(sh bash cat chmod chown cp cut date dirname echo env expr false find grep head id install kill ln ls mkdir mktemp
	mv nproc printf ps pwd readlink realpath rm sed seq sleep sort stat tail tar test touch tr true uname wc which xargs)

# add_program ROOT NAME...: the programs, under the paths they have here, with
# every library they load.
add_program() {
	local root=$1 name path
	shift
	for name in "$@"; do
		path=$(type -P "$name") || continue
		{ echo "$path"; ldd "$path" 2>/dev/null | grep -oE '/[^ ]+' || true; }
	done | sort -u | while read -r path; do add_file "$root" "$path"; done
}

# add_file ROOT PATH: the file a path leads to, and the path itself.
add_file() {
	local to=$1$2
	[ -e "$to" ] && return
	mkdir -p "$(dirname "$to")"
	cp --dereference --preserve=mode "$2" "$to"
}

# new_root ROOT: an empty Debian, with /bin and friends where bookworm has them.
new_root() {
	local root=$1 dir
	mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc/ssl/certs,root,proc,sys,dev,run,var/lib,opt,home,usr/local/bin}
	install -d -m 1777 "$root/tmp"
	for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
	printf 'root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnode:x:1000:\nnogroup:x:65534:\n' >"$root/etc/group"
	printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
	cp --dereference /etc/os-release "$root/etc/os-release"
	add_program "$root" "${basics[@]}"
	local library
	for library in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do
		library=$(ldconfig -p | awk -v l="$library" '$1 == l && !n++ { print $NF }')
		[ -z "$library" ] || add_file "$root" "$library"
	done
}

add_certificates() { cp --dereference /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"; }

# up_to_date IMAGE DIGEST
up_to_date() {
	[ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null)" = "$2" ]
}

digest() { { cat "${BASH_SOURCE[0]}"; printf '%s\n' "$@"; } | sha256sum | cut -c1-16; }

# import IMAGE DIGEST ROOT CHANGE...
import() {
	local image=$1 digest=$2 root=$3 changes=() change
	shift 3
	for change in "$@"; do changes+=(--change "$change"); done
	tar -C "$root" --owner=0 --group=0 --numeric-owner -c . |
		docker import "${changes[@]}" --change "LABEL $label=$digest" - "$image" >/dev/null
	echo "$image: made"
	rm -rf "$root"
}

make_debian() {
	local image=$1 is
	is=$(digest "$(cat /etc/debian_version)")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	new_root "$work/debian"
	import "$image" "$is" "$work/debian" 'CMD ["bash"]' \
		'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

make_node() {
	local image=$1 is node root=$work/node
	node=$(readlink -f "$(type -P node)")
	is=$(digest "$(node --version)")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	new_root "$root"
	add_program "$root" node
	[ -e "$root/usr/local/bin/node" ] || ln -s "$(type -P node)" "$root/usr/local/bin/node"
	# Like the real image: what is no program of the image is an argument of node.
	cat >"$root/usr/local/bin/docker-entrypoint.sh" <<'SCRIPT'
#!/bin/sh
if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ]; then set -- node "$@"; fi
exec "$@"
SCRIPT
	chmod 755 "$root/usr/local/bin/docker-entrypoint.sh"
	import "$image" "$is" "$root" 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["node"]' \
		'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

make_golang() {
	local image=$1 is goroot root=$work/golang
	goroot=$(go env GOROOT)
	is=$(digest "$(go version)" "$(cat go.sum go.mod)")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	new_root "$root"
	add_certificates "$root"
	mkdir -p "$root/usr/local/go" "$root/go/pkg/mod"
	tar -C "$goroot" --exclude=./test --exclude=./doc --exclude=./api --exclude=./misc --exclude=testdata -c . |
		tar -C "$root/usr/local/go" -x
	# The modules that go.mod names, so that `go mod download` in a build finds all
	# of them at home.
	go mod download
	local here
	here=$(go env GOMODCACHE)/cache/download
	GOMODCACHE="$root/go/pkg/mod" GOFLAGS=-modcacherw GOPROXY="file://$here" go mod download
	find "$root/go/pkg/mod" -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +
	rm -rf "$root/go/pkg/mod/cache/lock" "$root/go/pkg/mod/cache/vcs"
	# What hardly ever changes is compiled once, here, and not again in every build.
	mkdir -p "$root/root/.cache/go-build"
	GOCACHE="$root/root/.cache/go-build" CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$work/" ./edge ./wormhole ||
		echo "$image: made without a warm build cache" >&2
	import "$image" "$is" "$root" 'WORKDIR /go' 'CMD ["bash"]' 'ENV GOPATH=/go' 'ENV GOTOOLCHAIN=local' \
		'ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

[ $# -gt 0 ] || set -- debian:bookworm-slim node:20-bookworm-slim golang:1.26-bookworm
for image in "$@"; do
	case $image in
	debian:*) make_debian "$image" ;;
	node:*) make_node "$image" ;;
	golang:*) make_golang "$image" ;;
	*) echo "make-base.sh: no recipe for $image" >&2; exit 1 ;;
	esac
done
