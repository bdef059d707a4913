package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	ten := sample{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, c := range []struct {
		s       sample
		p, want float64
	}{
		{ten, 0, 1}, {ten, 5, 1}, {ten, 10, 1}, {ten, 11, 2}, {ten, 50, 5}, {ten, 99, 10}, {ten, 100, 10},
		{sample{4}, 99, 4}, {sample{}, 50, math.NaN()},
	} {
		if got := c.s.percentile(c.p); !cmp.Equal(c.want, got, cmpopts.EquateNaNs()) {
			t.Errorf("p%g of %v = %g, want %g", c.p, c.s, got, c.want)
		}
	}
}

func TestMedianIsTheMiddle(t *testing.T) {
	for _, c := range []struct {
		s    sample
		want float64
	}{{sample{3, 1, 2}, 2}, {sample{4, 1, 3, 2}, 2.5}, {sample{7}, 7}, {nil, math.NaN()}} {
		if got := c.s.median(); !cmp.Equal(c.want, got, cmpopts.EquateNaNs()) {
			t.Errorf("median of %v = %g, want %g", c.s, got, c.want)
		}
	}
}

func TestAsManyAsPPerCentDoNotExceedThePercentile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sample(rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 200).Draw(t, "sample"))
		p := rapid.Float64Range(0.1, 100).Draw(t, "p")
		v, within := s.percentile(p), 0
		for _, x := range s {
			if x <= v {
				within++
			}
		}
		if part := float64(within) / float64(len(s)) * 100; part < p-1e-9 {
			t.Fatalf("p%g of %v is %g, which only %g %% do not exceed", p, s, v, part)
		}
	})
}

func TestRatiosPairRounds(t *testing.T) {
	got, err := ratios(sample{1, 20, 3}, sample{2, 40, 4})
	if diff := cmp.Diff(sample{.5, .5, .75}, got); diff != "" || err != nil {
		t.Fatalf("%v, ratios differ (-want +got):\n%s", err, diff)
	}
}

func TestRatiosRefuseABrokenMeasurement(t *testing.T) {
	for name, c := range map[string]struct{ ours, theirs sample }{
		"nothing":      {nil, nil},
		"unpaired":     {sample{1, 2}, sample{1}},
		"ours zero":    {sample{1, 0}, sample{1, 1}},
		"theirs zero":  {sample{1, 1}, sample{1, 0}},
		"not a number": {sample{math.NaN()}, sample{1}},
	} {
		if got, err := ratios(c.ours, c.theirs); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}
