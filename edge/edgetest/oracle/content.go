package oracle

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/fnv"
	"math/rand/v2"
)

// Content is the n bytes that belong to a request id, the same on both ends.
func Content(id string, n int) []byte {
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(id))
	source := rand.NewPCG(seed.Sum64(), uint64(n))
	b := make([]byte, (n+7)&^7)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], source.Uint64())
	}
	return b[:n]
}

// Hash is the SHA-256 of b in hex.
func Hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
