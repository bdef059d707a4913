package cluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAMajorityOfAllVotesHasToAnswer(t *testing.T) {
	t.Parallel()
	for states, want := range map[string]int{
		"":                                           0,
		"leader":                                     0,
		"leader follower":                            0,
		"leader follower follower":                   1,
		"leader follower DOWN":                       0,
		"leader DOWN DOWN":                           0, // it does not answer at all any more
		"leader follower follower learner":           1, // a learner has no vote
		"leader follower starting":                   0,
		"leader follower follower follower":          1, // no better than three
		"leader follower follower DOWN DOWN":         0,
		"leader follower follower follower DOWN":     1,
		"leader follower follower follower follower": 2,
	} {
		var members []MemberInfo
		for _, s := range strings.Fields(states) {
			members = append(members, MemberInfo{State: s})
		}
		if got := losses(members); got != want {
			t.Errorf("%s: %d, want %d", states, got, want)
		}
	}
}

func TestTheStoreHasAnOddNumberOfMembers(t *testing.T) {
	t.Parallel()
	// Rows: members asked for; columns: 0 to 6 nodes.
	got := map[int][]int{}
	for _, size := range []int{1, 3, 5} {
		for nodes := range 7 {
			got[size] = append(got[size], possible(size, nodes))
		}
	}
	want := map[int][]int{1: {1, 1, 1, 1, 1, 1, 1}, 3: {1, 1, 1, 3, 3, 3, 3}, 5: {1, 1, 1, 3, 3, 5, 5}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for size, ok := range map[int]bool{-1: false, 0: false, 1: true, 2: false, 3: true, 4: false, 5: true, 7: false} {
		if err := checkSize(size); (err == nil) != ok {
			t.Errorf("%d members: %v", size, err)
		}
	}
}
