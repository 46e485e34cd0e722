// Checks notes, proofs and tiles with Go's golang.org/x/mod/sumdb/note and tlog.
//
// A list of cases comes as JSON on stdin; a list of answers goes to stdout, each with the error of its case,
// empty where everything holds. A note is opened first, then the tree in it is what the rest must lead to.
package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

// A Case is one thing to check. Bytes are in base64, as encoding/json has them.
type Case struct {
	Kind   string // note, inclusion, consistency, tiles or sign.
	Vkey   string
	Note   string
	Old    string // The older note.
	Index  int64
	Body   []byte
	Proof  []tlog.Hash
	Folder string
	Key    string // The private key to sign with.
	Text   string // The text to sign.
}

// An Answer has the text of a note that was signed, or opened.
type Answer struct {
	Error string `json:"error"`
	Text  string `json:"text"`
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	answers := make([]Answer, len(cases))
	for i, each := range cases {
		text, err := check(each)
		answers[i].Text = text
		if err != nil {
			answers[i].Error = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

func check(c Case) (string, error) {
	if c.Kind == "sign" {
		return sign(c)
	}
	text, tree, err := open(c.Note, c.Vkey)
	if err != nil {
		return "", err
	}
	switch c.Kind {
	case "note":
		return text, nil
	case "inclusion":
		return text, tlog.CheckRecord(c.Proof, tree.N, tree.Hash, c.Index, tlog.RecordHash(c.Body))
	case "consistency":
		_, old, err := open(c.Old, c.Vkey)
		if err != nil {
			return "", err
		}
		return text, tlog.CheckTree(c.Proof, tree.N, tree.Hash, old.N, old.Hash)
	case "tiles":
		return text, checkTiles(c.Folder, tree)
	}
	return "", errors.New("unknown kind " + c.Kind)
}

func sign(c Case) (string, error) {
	signer, err := note.NewSigner(c.Key)
	if err != nil {
		return "", err
	}
	signed, err := note.Sign(&note.Note{Text: c.Text}, signer)
	return string(signed), err
}

// open verifies a note and parses the checkpoint in it. The parser of tlog wants the first line of Go's own
// log, where a checkpoint has the origin; everything after it is the same.
func open(text, vkey string) (string, tlog.Tree, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return "", tlog.Tree{}, err
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return "", tlog.Tree{}, err
	}
	lines := strings.SplitN(opened.Text, "\n", 2)
	if lines[0] != verifier.Name() {
		return "", tlog.Tree{}, errors.New("the origin is not the name of the key")
	}
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + lines[1]))
	return opened.Text, tree, err
}

// A folder reads tiles of C2SP tlog-tiles: their paths are those of Go's own, without the height.
type folder string

func (f folder) Height() int { return height }

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		read, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		data[i] = read
	}
	return data, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

// checkTiles proves every leaf hash of the tiles against the tree, and every entry against its leaf hash.
func checkTiles(path string, tree tlog.Tree) error {
	indexes := make([]int64, tree.N)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(i))
	}
	leaves, err := tlog.TileHashReader(tree, folder(path)).ReadHashes(indexes)
	if err != nil {
		return err
	}
	entries, err := readEntries(path, tree.N)
	if err != nil {
		return err
	}
	for i, leaf := range leaves {
		if tlog.RecordHash(entries[i]) != leaf {
			return fmt.Errorf("entry %d does not have the hash of its leaf", i)
		}
	}
	return nil
}

func readEntries(path string, count int64) ([][]byte, error) {
	var entries [][]byte
	for n := int64(0); n*256 < count; n++ {
		width := count - n*256
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: height, L: -1, N: n, W: int(width)}
		name := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/data/", height), "tile/entries/", 1)
		bundle, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			return nil, err
		}
		for ; width > 0; width-- {
			if len(bundle) < 2 {
				return nil, errors.New("an entry bundle is too short")
			}
			size := int(binary.BigEndian.Uint16(bundle))
			if len(bundle) < 2+size {
				return nil, errors.New("an entry bundle is too short")
			}
			entries = append(entries, bundle[2:2+size])
			bundle = bundle[2+size:]
		}
		if len(bundle) > 0 {
			return nil, errors.New("an entry bundle is too long")
		}
	}
	return entries, nil
}
