package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
)

// Verify reads a whole archive and says whether every file in it is as it was written. The error wraps ErrDamaged, and
// names the file, or ErrForeign.
func Verify(ctx context.Context, in io.Reader, bases Bases, progress func(Progress)) (Summary, error) {
	v := &verifier{buf: make([]byte, pieceSize), progress: progress}
	s, err := read(ctx, in, bases, v)
	if v.manifest != nil {
		v.manifest.close()
	}
	if err != nil {
		return Summary{}, fmt.Errorf("verify: %w", err)
	}
	return s, nil
}

// verifier is a sink that keeps nothing but the sums.
type verifier struct {
	manifest *manifest
	buf      []byte
	at       Progress
	progress func(Progress)
}

func (v *verifier) begin() (err error) {
	if v.manifest != nil {
		v.manifest.close()
	}
	v.manifest, err = newManifest()
	return err
}

func (v *verifier) file(_ *tar.Header, name string, data io.Reader, _ bool) error {
	sum := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{data}, v.buf)
	if err != nil {
		return err
	}
	v.note(n)
	_, err = v.manifest.Write(appendSum(nil, sum.Sum(nil), name))
	return err
}

func (v *verifier) other(*tar.Header, string) error { v.note(0); return nil }

func (v *verifier) note(n int64) {
	v.at.Entries++
	v.at.Bytes += n
	if v.progress != nil {
		v.progress(v.at)
	}
}

func (v *verifier) sums() (*manifest, error) { return v.manifest, nil }
