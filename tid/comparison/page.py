def html(*a): return ""
