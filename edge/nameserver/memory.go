package nameserver

import (
	"sync"
	"time"
)

const (
	remembered = time.Hour
	mostKnown  = 1 << 16
)

// memory keeps which sites were known lately. A site whose only backend restarts is
// unknown for a moment at the edges that do not hold its rules, and an answer that
// denies it would outlive that moment in resolvers' caches.
type memory struct {
	mu sync.Mutex // guards at
	at map[string]time.Time
}

func (m *memory) note(pattern string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		m.at = map[string]time.Time{}
	}
	if _, known := m.at[pattern]; !known && len(m.at) >= mostKnown {
		for other := range m.at {
			delete(m.at, other)
			break
		}
	}
	m.at[pattern] = now
}

func (m *memory) has(pattern string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, known := m.at[pattern]
	if known && now.Sub(at) > remembered {
		delete(m.at, pattern)
		return false
	}
	return known
}
