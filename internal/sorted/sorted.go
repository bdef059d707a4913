// Package sorted compares sorted slices.
package sorted

// Merge walks two sorted slices at once and calls f with what compares equal; what one of them lacks is nil.
func Merge[T any](have, want []T, compare func(a, b T) int, f func(have, want *T)) {
	for len(have) > 0 || len(want) > 0 {
		c := 0
		switch {
		case len(have) == 0:
			c = 1
		case len(want) == 0:
			c = -1
		default:
			c = compare(have[0], want[0])
		}
		var h, w *T
		if c <= 0 {
			h, have = &have[0], have[1:]
		}
		if c >= 0 {
			w, want = &want[0], want[1:]
		}
		f(h, w)
	}
}
