"""How fast each role is, beside what this machine allows: measured together, in processes of their own."""
