#!/usr/bin/env bash
# Makes the base images that this project's Dockerfiles name, from what is
# installed on this machine, for machines that reach no registry. Everywhere else
# the same Dockerfiles pull the real ones, and this script is not needed. Arguments are
# the images to make; without one it makes all.
#
# An image that is up to date is left alone. Each carries the label
# wormhole.base, a digest of what it was made from. Versions are those of this
# machine and of its Debian, whatever the tag says. Python, Ruby, PHP, Java and nginx
# come from Debian's packages, through apt-get, which installs nothing here.
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

# digest FUNCTION WORD...: of what an image is made from: the function that makes it,
# those that all use, and the words.
digest() { { declare -f "$1" new_root add_program add_file import; printf '%s\n' "${basics[@]}" "${@:2}"; } | sha256sum | cut -c1-16; }

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
	is=$(digest make_debian "$(cat /etc/debian_version)")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	new_root "$work/debian"
	import "$image" "$is" "$work/debian" 'CMD ["bash"]' \
		'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

make_node() {
	local image=$1 is node root=$work/node
	node=$(readlink -f "$(type -P node)")
	is=$(digest make_node "$(node --version)")
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
	is=$(digest make_golang "$(go version)" "$(cat go.sum go.mod)")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	new_root "$root"
	add_certificates "$root"
	mkdir -p "$root/usr/local/go" "$root/go/pkg/mod"
	# Without its tests, and without the sources of its own programs.
	tar -C "$goroot" --exclude=./test --exclude=./doc --exclude=./api --exclude=./misc --exclude=./src/cmd --exclude=testdata \
		--exclude='*_test.go' -c . |
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

# apt ARGUMENT...: of a Debian with nothing installed, and with no need for root.
lists=(-o Dir::State::status=/dev/null)
apt() {
	apt-get -qq -y "${lists[@]}" -o Dir::Cache="$work/apt" -o Dir::Cache::archives="$work/debs" -o Dir::Log="$work/apt" \
		-o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)" -o APT::Install-Recommends=false "$@"
}

# Files of packages that no program of an image opens. Docker looks at every file of
# an image for every layer on top of it, so that few files is what makes it quick.
unneeded=(doc doc-base man info locale lintian bug perl perl5 zoneinfo/posix zoneinfo/right ri fonts bash-completion)

# add_packages ROOT PACKAGE...: Debian packages and all that they depend on, unpacked.
# Their scripts do not run.
add_packages() {
	local root=$1 deb file without=()
	shift
	rm -rf "$work/debs"
	mkdir -p "$work/debs/partial" "$work/apt"
	if ! apt --download-only install "$@" >"$work/apt.log" 2>&1; then
		# Nobody ever asked for lists on this machine, or they are too old.
		mkdir -p "$work/lists/partial"
		lists+=(-o Dir::State::lists="$work/lists")
		{ apt update && apt --download-only install "$@"; } >>"$work/apt.log" 2>&1 ||
			{ echo "make-base.sh: apt-get does not find $*" >&2; tail -n 20 "$work/apt.log" >&2; exit 1; }
	fi
	for file in "${unneeded[@]}"; do without+=(--exclude="./usr/share/$file"); done
	for deb in "$work"/debs/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -C "$root" --no-same-owner --keep-directory-symlink "${without[@]}" \
			--exclude='./usr/lib/jvm/*/jmods' --exclude='./usr/lib/*/perl*' --exclude=EXTERNALLY-MANAGED --exclude=__pycache__ -x
	done
	add_certificates "$root"
}

# make_packaged IMAGE FUNCTION PACKAGE... -- CHANGE...: an image of packages. The
# function sets up what their scripts would have.
make_packaged() {
	local image=$1 setup=$2 packages=() changes=() change signal='' is same root=$work/packaged
	shift 2
	while [ "$1" != -- ]; do packages+=("$1"); shift; done
	shift
	is=$(digest make_packaged "$(cat /etc/debian_version)" "$(declare -f add_packages "$setup")" "${unneeded[@]}" "${packages[@]}" "$@")
	up_to_date "$image" "$is" && { echo "$image: up to date"; return; }
	same=$(docker image ls -q --filter "label=$label=$is" | head -n 1)
	[ -z "$same" ] || { docker tag "$same" "$image"; echo "$image: tagged"; return; }
	new_root "$root"
	add_packages "$root" "${packages[@]}"
	"$setup" "$root"
	# What `docker import` cannot say, a Dockerfile of two lines does.
	for change in "$@"; do
		case $change in STOPSIGNAL*) signal=$change ;; *) changes+=("$change") ;; esac
	done
	import "$image" "$is" "$root" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' "${changes[@]}"
	[ -z "$signal" ] || printf 'FROM %s\n%s\n' "$image" "$signal" | docker build -q -t "$image" - >/dev/null
}

# script PATH: a program, whose text is the input.
script() { cat >"$1" && chmod 755 "$1"; }

make_python() { make_packaged "$1" set_up_python python3 python3-pip gunicorn -- 'CMD ["python3"]'; }
set_up_python() { ln -s python3 "$1/usr/bin/python"; }

make_ruby() {
	make_packaged "$1" set_up_ruby ruby bundler puma ruby-railties ruby-actionpack -- \
		'ENV BUNDLE_SILENCE_ROOT_WARNING=1' 'CMD ["irb"]'
}
set_up_ruby() { add_program "$1" env; }

make_java() { make_packaged "$1" set_up_java default-jdk-headless -- 'CMD ["jshell"]'; }
set_up_java() {
	local program
	for program in "$1"/usr/lib/jvm/java-*-openjdk-*/bin/*; do
		ln -sf "${program#"$1"}" "$1/usr/bin/"
	done
}

make_php() {
	make_packaged "$1" set_up_php apache2 libapache2-mod-php -- 'STOPSIGNAL SIGWINCH' 'WORKDIR /var/www/html' \
		'CMD ["apache2-foreground"]'
}
set_up_php() {
	local root=$1 module file
	echo 'www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin' >>"$root/etc/passwd"
	echo 'www-data:x:33:' >>"$root/etc/group"
	mkdir -p "$root"/etc/apache2/{mods,conf,sites}-enabled "$root"/var/{www/html,run/apache2,lock/apache2,log/apache2}
	for module in mpm_prefork authz_core dir mime php; do
		for file in "$root/etc/apache2/mods-available/$module"*.{load,conf}; do
			case ${file##*/} in
			"$module".* | php[0-9]*) [ ! -e "$file" ] || ln -s "../mods-available/${file##*/}" "$root/etc/apache2/mods-enabled/" ;;
			esac
		done
	done
	ln -s ../sites-available/000-default.conf "$root/etc/apache2/sites-enabled/"
	ln -s /dev/stderr "$root/var/log/apache2/error.log"
	ln -s /dev/stdout "$root/var/log/apache2/access.log"
	script "$root/usr/local/bin/apache2-foreground" <<'SCRIPT'
#!/bin/sh
. /etc/apache2/envvars
exec apache2 -DFOREGROUND "$@"
SCRIPT
}

make_nginx() {
	make_packaged "$1" set_up_nginx nginx-light gettext-base -- 'STOPSIGNAL SIGQUIT' \
		'ENTRYPOINT ["/docker-entrypoint.sh"]' 'CMD ["nginx", "-g", "daemon off;"]'
}
set_up_nginx() {
	local root=$1
	echo 'www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin' >>"$root/etc/passwd"
	echo 'www-data:x:33:' >>"$root/etc/group"
	rm -rf "$root"/etc/nginx/{sites-enabled,modules-enabled}/*
	mkdir -p "$root"/usr/share/nginx/html "$root"/var/{log/nginx,lib/nginx} "$root/etc/nginx/conf.d"
	printf 'server { listen 80; root /usr/share/nginx/html; }\n' >"$root/etc/nginx/conf.d/default.conf"
	script "$root/docker-entrypoint.sh" <<'SCRIPT'
#!/bin/sh
exec "$@"
SCRIPT
}

# Not a base of any Dockerfile: where commands that install units are tried.
make_systemd() { make_packaged "$1" set_up_systemd systemd util-linux -- 'CMD ["bash"]'; }
set_up_systemd() { mkdir -p "$1/etc/systemd/system"; }

[ $# -gt 0 ] || set -- debian:bookworm-slim node:20-bookworm-slim golang:1.26-bookworm \
	python:3.13-slim ruby:3.4-slim php:8.4-apache eclipse-temurin:21-jre eclipse-temurin:21-jdk nginx:1.29 \
	wormhole/debian-systemd:latest
for image in "$@"; do
	case $image in
	debian:*) make_debian "$image" ;;
	node:*) make_node "$image" ;;
	golang:*) make_golang "$image" ;;
	python:*) make_python "$image" ;;
	ruby:*) make_ruby "$image" ;;
	php:*) make_php "$image" ;;
	eclipse-temurin:*) make_java "$image" ;;
	nginx:*) make_nginx "$image" ;;
	wormhole/debian-systemd:*) make_systemd "$image" ;;
	*) echo "make-base.sh: no recipe for $image" >&2; exit 1 ;;
	esac
done
