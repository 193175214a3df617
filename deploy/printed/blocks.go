// Package printed takes the commands and Dockerfiles out of the documentation and
// runs them exactly as printed. The info string of a fenced block says how: readers
// see the first word only.
//
//	```sh run=NAME        run in the scene NAME, after its other blocks of the file
//	```text output=NAME   printed by the scene NAME, … standing for what differs
//	```sh untested        only on the page that says of all its commands that none is run
//	```dockerfile build=NAME   build with the app NAME, and ask it something
//	```dockerfile fragment     part of a file that is printed whole elsewhere
package printed

import (
	"fmt"
	"strings"
)

// Block is one fenced block of a document.
type Block struct {
	File     string // the document
	Line     int    // of the opening fence
	Language string // sh, dockerfile, …
	Key      string // run, output, untested, build, fragment; empty if nothing is said
	Value    string // what stands behind the =
	Text     string
}

// String says where the block is.
func (b Block) String() string { return fmt.Sprintf("%s:%d", b.File, b.Line) }

// Blocks returns the fenced blocks of a document in Markdown.
func Blocks(file, text string) ([]Block, error) {
	var blocks []Block
	var open *Block
	for i, line := range strings.Split(text, "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case open == nil && fence:
			open = &Block{File: file, Line: i + 1}
			var mark string
			open.Language, mark, _ = strings.Cut(info, " ")
			open.Key, open.Value, _ = strings.Cut(mark, "=")
		case open != nil && fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line + "\n"
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s: the block does not end", open)
	}
	return blocks, nil
}
