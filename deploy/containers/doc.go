// Package containers tests what people do with a Docker engine: build the images,
// bring the compose example up, scale it, stop and kill copies under load, and run
// the agent as PID 1. The tests need the build tag containers (`make containers`);
// all traffic stays on loopback and on networks of their own.
package containers
