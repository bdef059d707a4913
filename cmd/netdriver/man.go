package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// man writes the manual pages, one for each verb.
func (a app) man() *cobra.Command {
	return &cobra.Command{
		Use: "man DIRECTORY", Short: "Write the manual pages to a directory", Args: cobra.ExactArgs(1),
		Long: "Write the manual pages of all verbs to a directory, such as /usr/local/share/man/man8.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("manual pages: %w", err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // the same pages from the same program
			header := &doc.GenManHeader{Title: "NETDRIVER", Section: "8", Source: "netdriver", Manual: "System administration"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("manual pages: %w", err)
			}
			return nil
		},
	}
}
