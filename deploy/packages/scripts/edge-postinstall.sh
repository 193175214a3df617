#!/bin/sh
# Makes the user. A new edge is not started, because its name is not known yet; one
# that runs goes on in the new binary without refusing anybody.
set -e
[ -z "${DPKG_ROOT:-}" ] || exit 0
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers /usr/lib/sysusers.d/wormhole.conf
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-reload-or-restart wormhole-edge.service || :
fi
