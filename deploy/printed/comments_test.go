package printed_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wormhole/deploy/printed"
)

// comments says of every file under deploy/ whose comments print something what is
// done with it: run= names the scene, and a scene is a test that takes the text from
// here.
var comments = map[string]string{
	"Dockerfile.agent":                     "run=images",
	"Dockerfile.edge":                      "run=images",
	"deploy/compose/compose.yaml":          "run=TestCommandsPrintedInComposeFilesWork in deploy/containers",
	"deploy/compose/regions.yaml":          "run=TestCommandsPrintedInComposeFilesWork in deploy/containers",
	"deploy/systemd/wormhole-edge.service": "run=systemd",
	"deploy/systemd/wormhole@.service":     "run=systemd",
}

// commentBlocks are those of one file, or of a scene.
func commentBlocks(t *testing.T, root, scene string) (out []printed.Block) {
	t.Helper()
	for file, how := range comments {
		if file != scene && how != "run="+scene {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, printed.Comments(file, string(text))...)
	}
	slices.SortFunc(out, func(a, b printed.Block) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func TestEveryCommandInACommentIsRun(t *testing.T) {
	root, _ := blocks(t)
	list := exec.Command("git", "ls-files", "-co", "--exclude-standard", "deploy", "Dockerfile.*")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range strings.Fields(string(names)) {
		if slices.Contains([]string{".go", ".md", ".json", ".svg", ".sum", ".mod", ".js"}, filepath.Ext(file)) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range printed.Comments(file, string(text)) {
			found[file] = true
			if !strings.HasPrefix(comments[file], "run=") {
				t.Errorf("%s: say in comments_test.go what runs this:\n%s", b, b.Text)
			}
		}
	}
	for file := range comments {
		if !found[file] {
			t.Errorf("%s prints nothing any more", file)
		}
	}
}
