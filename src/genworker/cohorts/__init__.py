"""From a catalogue and an experiment's axes to membership rows: values in, values out."""
