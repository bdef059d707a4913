//go:build !race

package diag

const slowdown = 1
