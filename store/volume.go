package store

import (
	"fmt"
	"regexp"
	"time"
)

// Volume is one volume of the cluster, valid on every node. Its options are what the user gave: they name servers,
// paths and files with secrets, never a secret itself.
type Volume struct {
	Name    string            `json:"name"`
	Options map[string]string `json:"options,omitempty"`
	// Node made the volume. A volume whose data is in a node's own directory is usable there only.
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
	// Updated is when the options were last changed, zero if never.
	Updated time.Time `json:"updated,omitzero"`
	// Drift are the nodes that asked for the volume with other options since, the last time of each.
	Drift []VolumeDrift `json:"drift,omitempty"`
}

// VolumeDrift is a wish for a volume that exists with other options. It was refused.
type VolumeDrift struct {
	Node    string            `json:"node"`
	Options map[string]string `json:"options,omitempty"`
	Since   time.Time         `json:"since"`
}

// volumeName is moby's RestrictedNamePattern (daemon/names/names.go), within what a directory's name and a prefix of
// ours may have together (NAME_MAX, 255).
var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}$`)

// CheckVolumeName says whether s can name a volume.
func CheckVolumeName(s string) error {
	if !volumeName.MatchString(s) {
		return fmt.Errorf("volume name %q: want 2 to 200 letters, digits, '_', '.' or '-', beginning with a letter or digit", s)
	}
	return nil
}

// VolumeUses is what one node uses of the cluster's volumes, written by its daemon when that changes: it tells what may
// be removed, and is shown. Nothing is unmounted because of it.
type VolumeUses struct {
	Node    string               `json:"node"`
	Volumes map[string]VolumeUse `json:"volumes,omitempty"`
	Updated time.Time            `json:"updated"`
}

// VolumeUse is one volume in use on a node.
type VolumeUse struct {
	// Users is how many containers and commands use it.
	Users int `json:"users"`
	// Health is healthy, stale or hung, empty if not known yet.
	Health string `json:"health,omitempty"`
	// Since is when it was mounted there.
	Since time.Time `json:"since"`
}

// VolumeBackup is what is known of a volume's backups: the one that was begun last, and the last that succeeded. Writing it
// with Finished zero is how a node takes a scheduled backup upon itself.
type VolumeBackup struct {
	Volume string `json:"volume"`
	// Node makes it, or has made it.
	Node    string    `json:"node"`
	Started time.Time `json:"started"`
	// Finished is zero as long as it runs.
	Finished time.Time `json:"finished,omitzero"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
	// Succeeded is when the last good one was finished, File where it is, the rest what is in it.
	Succeeded time.Time `json:"succeeded,omitzero"`
	File      string    `json:"file,omitempty"`
	Entries   int64     `json:"entries,omitempty"`
	Bytes     int64     `json:"bytes,omitempty"`
	Unchanged int64     `json:"unchanged,omitempty"`
}
