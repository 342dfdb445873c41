"""Numbers of the fields and flags in CRIU's images that Torpor reads or writes (CRIU 4.2)."""

from __future__ import annotations

# Field numbers: images/{mm,vma,pagemap,fdinfo,regfile}.proto
MM_VMAS = 14
VMA_START, VMA_END, VMA_OFFSET, VMA_FILE, VMA_PROTECTION, VMA_FLAGS, VMA_STATUS = 1, 2, 3, 4, 5, 6, 7
VMA_ADVICE, VMA_OPEN_FLAGS = 9, 10
PAGEMAP_PAGES_ID = 1
RUN_START, RUN_PAGES_32, RUN_FLAGS, RUN_PAGES = 1, 2, 4, 5
FILE_TYPE, FILE_ID, FILE_REGULAR = 1, 2, 3
REGULAR_ID, REGULAR_FLAGS, REGULAR_POSITION = 1, 2, 3
REGULAR_OWNER, REGULAR_NAME, REGULAR_SIZE, REGULAR_MODE = 5, 6, 8, 10
OWNER_FIELDS = range(1, 6)

# Values: criu/include/image.h, include/common/page.h, images/fdinfo.proto
AREA_REGULAR, AREA_HEAP, AREA_PRIVATE_FILE, AREA_PRIVATE_ANONYMOUS = 1 << 0, 1 << 5, 1 << 6, 1 << 9
RUN_PRESENT = 1 << 2
TYPE_REGULAR = 1
