package main

import (
	"fmt"
	"math"
	"slices"
)

// A sample holds measured values in the order in which they were measured.
type sample []float64

// percentile returns the value that p per cent of the sample do not exceed (the nearest-rank method, so it is one
// that was really measured). An empty sample has none: NaN.
func (s sample) percentile(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median returns the middle value, or the mean of the two in the middle.
func (s sample) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ratios divides two samples round by round. Both values of a round were measured one right after the other, so what
// slows the machine down for longer than a round is in both and cancels out.
func ratios(ours, theirs sample) (sample, error) {
	if len(ours) != len(theirs) || len(ours) == 0 {
		return nil, fmt.Errorf("%d rounds of ours and %d of the other's cannot be paired", len(ours), len(theirs))
	}
	out := make(sample, len(ours))
	for i := range ours {
		if !(ours[i] > 0) || !(theirs[i] > 0) { // NaN, too
			return nil, fmt.Errorf("round %d measured %g and %g: no ratio", i+1, ours[i], theirs[i])
		}
		out[i] = ours[i] / theirs[i]
	}
	return out, nil
}

// mean returns the arithmetic mean; that of an empty sample is NaN.
func (s sample) mean() float64 {
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return sum / float64(len(s))
}

// beyond is by how much the values exceed those of another sample's same rounds.
func (s sample) beyond(base sample) sample {
	out := make(sample, len(s))
	for i := range s {
		out[i] = s[i] - base[i]
	}
	return out
}
