"""Which of MediaPipe's 478 face points make which part of the face; plain tuples of point numbers."""

from __future__ import annotations

N_POINTS = 478  # 468 points of the face mesh, then 5 of each iris
N_MESH = 468
N_BLENDSHAPES = 52  # the first is MediaPipe's `_neutral`

LEFT_EYE = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362),
    (263, 466, 388, 387, 386, 385, 384, 398, 362),
)
LEFT_BROW = ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336))
RIGHT_EYE = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
)
RIGHT_BROW = ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107))
INNER_LIP_BOTTOM_RIGHT = (78, 95, 88, 178, 87, 14)
INNER_LIP_BOTTOM_LEFT = (14, 317, 402, 318, 324, 308)
INNER_LIP_TOP_RIGHT = (78, 191, 80, 81, 82, 13)
INNER_LIP_TOP_LEFT = (13, 312, 311, 310, 415, 308)
OUTER_LIPS = (
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
)

# The outline of the face without the forehead, from temple to temple under the chin.
FACE_OUTLINE = (
    *(21, 162, 127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152),
    *(377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356, 389),
)
CONTOUR = (*FACE_OUTLINE, 251)

# The whole outline of the mesh, in order around the face.
FACE_OVAL = (
    *(356, 389, 251, 284, 332, 297, 338, 10, 109, 67, 103, 54, 21, 162, 127, 234, 93, 132),
    *(58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454),
)
# The rim of the mouth's opening, in order around it.
INNER_LIPS = (
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
    *(415, 310, 311, 312, 13, 82, 81, 80, 191),
)

RIGHT_PUPIL, LEFT_PUPIL = 468, 473
RIGHT_IRIS = (468, 469, 470, 471, 472)
LEFT_IRIS = (473, 474, 475, 476, 477)

RIGHT_EYE_POINTS = tuple(sorted({point for chain in RIGHT_EYE for point in chain}))
LEFT_EYE_POINTS = tuple(sorted({point for chain in LEFT_EYE for point in chain}))

# Every point that the expression-aware drawing shows.
EXPRESSION_POINTS = tuple(
    sorted(
        {
            point
            for chain in (
                *(*LEFT_EYE, *LEFT_BROW, *RIGHT_EYE, *RIGHT_BROW),
                *(INNER_LIP_BOTTOM_RIGHT, INNER_LIP_BOTTOM_LEFT, INNER_LIP_TOP_RIGHT, INNER_LIP_TOP_LEFT),
                (RIGHT_PUPIL, LEFT_PUPIL),
            )
            for point in chain
        }
    )
)
