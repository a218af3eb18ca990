package volume

import "testing"

// An extent's place that was read before its blocks moved must not be
// remembered after the move.
func TestExtentCacheForgetsOldPlaces(t *testing.T) {
	c := newExtentCache(func() int { return maxOpenExtents / extentShards })
	n := extentName{1, 2}
	x, ticket := c.get(n)
	if x != nil {
		t.Fatal("an empty cache has an extent")
	}
	c.drop(n)
	c.put(n, &openExtent{}, ticket)
	if x, ticket = c.get(n); x != nil {
		t.Fatal("an extent came into the cache after it was dropped")
	}
	c.put(n, &openExtent{}, ticket)
	if x, _ = c.get(n); x == nil {
		t.Fatal("the cache does not keep an extent")
	}
}
