"""How fast each role is, beside what nothing on this machine can exceed: measured together, in processes of their own."""
