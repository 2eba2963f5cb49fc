"""Where replies are shown: chat platforms and web back ends, each in a module of its own that needs its own extra."""
