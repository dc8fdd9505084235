"""What is published of VOC-MLT and COCO-MLT: class names and facts. Nothing here is computed."""

# The data sets' own class names, in the benchmarks' order.
VOC_CLASSES = ("aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
               "pottedplant sheep sofa train tvmonitor").split()  # fmt: skip
COCO_CLASSES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")

# What the papers state of the two benchmarks (Wu et al., ECCV 2020; official lists), to hold our counts against.
PUBLISHED = {
    "voc": {"train images": 1142, "test images": 4952, "head classes": 6, "medium classes": 6, "tail classes": 8,
            "smallest class": 4, "largest class": 775,
            "train sha256": "6fa70d5b693700d97657acd03b18b4d198aa59795dc99828db2c21a2abf2133f"},
    "coco": {"train images": 1909, "test images": 5000, "head classes": 22, "medium classes": 33, "tail classes": 25,
             "smallest class": 6, "largest class": 1128,
             "train sha256": "65d0d7fb585456dd7b543bd1fbb90f20676656412b0c74b2e2b136398e447ead"},
}  # fmt: skip
