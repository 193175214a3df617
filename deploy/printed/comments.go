package printed

import "strings"

// Comments returns what the comments of a file print for people to type or copy:
// lines that begin with # and three spaces or more, below one that is # alone, or in
// the notes of a chart lines that begin with two spaces. Lines that follow each other
// are one block; what is indented further keeps its indentation.
func Comments(file, text string) []Block {
	mark := "#   "
	if strings.HasSuffix(file, "NOTES.txt") {
		mark = "  "
	}
	var blocks []Block
	open, before := false, ""
	for i, line := range strings.Split(text, "\n") {
		rest, printed := strings.CutPrefix(strings.TrimLeft(line, " "), mark)
		if mark == "  " {
			rest, printed = strings.CutPrefix(line, mark)
		}
		printed = printed && (open || mark == "  " || before == "#")
		before = strings.TrimSpace(line)
		if !printed {
			open = false
			continue
		}
		if !open {
			blocks = append(blocks, Block{File: file, Line: i + 1})
		}
		open = true
		blocks[len(blocks)-1].Text += rest + "\n"
	}
	return blocks
}
