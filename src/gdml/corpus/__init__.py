"""Many slides, one function: a manifest, a state file a slide, claims among callers, and the engines that run them."""
