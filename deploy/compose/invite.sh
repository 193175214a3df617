# Leaves a new token for app.localhost and the authority's certificate in
# /invitation, and with the argument join a token for further edges in /join, each
# whole or not at all.
set -eu
cd /invitation
/edge token issue --data-dir /var/lib/wormhole --host app.localhost --name compose >token.new
cp /var/lib/wormhole/ca/ca.pem ca.pem.new
mv token.new token
mv ca.pem.new ca.pem
if [ "${1:-}" = join ]; then
	cd /join
	(umask 077 && /edge cluster join-token --data-dir /var/lib/wormhole >token.new)
	mv token.new token
fi
