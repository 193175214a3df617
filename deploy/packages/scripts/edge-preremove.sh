#!/bin/sh
# Stops the edge when its package goes ("remove" for deb, 0 for rpm), not when
# another version follows.
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
[ -n "${DPKG_ROOT:-}" ] || [ ! -d /run/systemd/system ] || systemctl disable --now wormhole-edge.service || :
