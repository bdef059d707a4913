//go:build race

package diag

// slowdown is how much longer code may take under the race detector (https://go.dev/doc/articles/race_detector).
const slowdown = 10
