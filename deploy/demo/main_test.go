package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"wormhole/deploy/rig"
)

func TestDemoLosesNoRequest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var said bytes.Buffer
	err := run(ctx, &said, rig.BuildBinaries, false)
	t.Logf("the demo said:\n%s", said.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"statler", "waldorf", "fozzie"} {
		if !bytes.Contains(said.Bytes(), []byte(name)) {
			t.Errorf("%s is not mentioned", name)
		}
	}
}
