"""The shared vocabulary: types, maths, networks and algorithms. No process, no Ray."""
